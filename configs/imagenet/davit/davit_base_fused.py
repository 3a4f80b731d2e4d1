# DaViT-B on ImageNet-1K at 224: 84.6 % top-1 as published (arXiv 2204.03645, README), 88.0 M parameters.
# Total batch 1024: 8 processes x 128. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/davit/davit_base_fused --launcher pytorch --amp fp16
# Its drop path is not given: a usual one for its size is taken.
_base_ = ["davit_tiny_fused.py"]
model = dict(model_name="davit_base_fused", drop_path_rate=0.4)
