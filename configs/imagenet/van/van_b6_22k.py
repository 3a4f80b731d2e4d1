# VAN-B6 on ImageNet-22K at 224: no top-1 is published (arXiv 2202.09741), 215.9 M parameters.
# Total batch 8192: 8 processes x 64 x 16 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/van/van_b6_22k --launcher pytorch
# See van_b4_22k for what is not given.
_base_ = ["van_b4_22k.py"]
model = dict(model_name="van_b6.in22k")
