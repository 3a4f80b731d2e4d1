# VAN-B5 from ImageNet-22K at 224: 86.3 % top-1 as published (arXiv 2202.09741, Table 8), 90.0 M parameters.
# Total batch 512: 8 processes x 32 x 2 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/van/van_b5_ft --launcher pytorch
# See van_b4_ft for what is not given.
_base_ = ["van_b4_ft.py"]
model = dict(model_name="van_b5.in22k_ft_in1k", weights="van_b5.in22k")
