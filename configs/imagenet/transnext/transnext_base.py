# TransNeXt-Base on ImageNet-1K at 224: 84.8 % top-1 as published (arXiv 2311.17132, README), 89.7 M parameters.
# Total batch 1024: 8 processes x 128. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/transnext/transnext_base --launcher pytorch --amp fp16 --compile
_base_ = ["transnext_micro.py"]
model = dict(model_name="transnext_base", drop_path_rate=0.6)
