# BiFormer-B on ImageNet-1K at 224: 84.3 % top-1 as published (arXiv 2303.08810, README), 56.8 M parameters.
# Total batch 1024: 8 processes x 128. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/biformer/biformer_base --launcher pytorch --amp fp16
# Its drop path is not verified: the rate that the authors segment with is taken.
# See biformer_tiny for what is left out.
_base_ = ["biformer_tiny.py"]
model = dict(model_name="biformer_base", drop_path_rate=0.4)
