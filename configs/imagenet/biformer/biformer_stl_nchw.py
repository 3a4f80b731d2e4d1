# BiFormer-STL in NCHW on ImageNet-1K at 224: 82.7 % top-1 as published (arXiv 2303.08810, README), 28.4 M parameters.
# Total batch 1024: 8 processes x 128. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/biformer/biformer_stl_nchw --launcher pytorch --amp fp16
# See biformer_tiny for what is left out.
_base_ = ["biformer_tiny.py"]
model = dict(model_name="biformer_stl_nchw", drop_path_rate=0.1)
