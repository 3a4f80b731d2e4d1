# CSWin-S on ImageNet-1K at 224: 83.6 % top-1 as published (arXiv 2107.00652, README), 34.6 M parameters.
# Total batch 2048: 8 processes x 256. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/cswin/cswin_small --launcher pytorch --amp fp16
_base_ = ["cswin_tiny.py"]
model = dict(model_name="cswin_small", drop_path_rate=0.4)
