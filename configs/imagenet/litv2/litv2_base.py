# LITv2-B on ImageNet-1K at 224: 83.6 % top-1 as published (arXiv 2205.13213, README), 86.5 M parameters.
# Total batch 1024: 8 processes x 128. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/litv2/litv2_base --launcher pytorch
_base_ = ["litv2_small.py"]
model = dict(model_name="litv2_base", drop_path_rate=0.5)
