# L2ViT-B on ImageNet-1K at 224: 84.4 % top-1 as published (arXiv 2501.16182, README), 88.6 M parameters.
# Total batch 4096: 8 processes x 128 x 4 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/l2vit/l2vit_base --launcher pytorch
_base_ = ["l2vit_tiny.py"]
model = dict(model_name="l2vit_base", drop_path_rate=0.3)
