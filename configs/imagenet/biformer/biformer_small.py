# BiFormer-S on ImageNet-1K at 224: 83.8 % top-1 as published (arXiv 2303.08810, README), 25.5 M parameters.
# Total batch 1024: 8 processes x 128. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/biformer/biformer_small --launcher pytorch --amp fp16
# See biformer_tiny for what is left out.
_base_ = ["biformer_tiny.py"]
model = dict(model_name="biformer_small", drop_path_rate=0.15)
