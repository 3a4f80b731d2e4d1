# L2ViT-S on ImageNet-1K at 224: 84.1 % top-1 as published (arXiv 2501.16182, README), 50.2 M parameters.
# Total batch 4096: 8 processes x 128 x 4 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/l2vit/l2vit_small --launcher pytorch
# Its drop path is not verified: one for its size, below the authors' 0.3 for L2ViT-B, is taken.
_base_ = ["l2vit_tiny.py"]
model = dict(model_name="l2vit_small", drop_path_rate=0.2)
