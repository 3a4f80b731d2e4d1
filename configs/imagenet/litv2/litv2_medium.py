# LITv2-M on ImageNet-1K at 224: 83.3 % top-1 as published (arXiv 2205.13213, README), 48.8 M parameters.
# Total batch 1024: 8 processes x 128. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/litv2/litv2_medium --launcher pytorch
_base_ = ["litv2_small.py"]
model = dict(model_name="litv2_medium", drop_path_rate=0.3)
