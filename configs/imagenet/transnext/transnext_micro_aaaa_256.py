# TransNeXt-Micro-AAAA on ImageNet-1K at 256: 82.6 % top-1 as published (arXiv 2311.17132, README), 13.1 M parameters.
# Total batch 1024: 8 processes x 128. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/transnext/transnext_micro_aaaa_256 --launcher pytorch \
#     --amp fp16 --compile
_base_ = ["transnext_micro.py"]
model = dict(model_name="transnext_micro_aaaa_256")
