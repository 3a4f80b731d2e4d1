# VAN-B4 from ImageNet-22K at 384: 86.6 % top-1 as published (arXiv 2202.09741, Table 8), 60.3 M parameters.
# Total batch 512: 8 processes x 16 x 4 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/van/van_b4_384_ft --launcher pytorch
# The authors took 32 GPUs x 16. See van_b4_ft for what is not given.
_base_ = ["van_b4_ft.py"]
model = dict(model_name="van_b4.in22k_ft_in1k_384", weights="van_b4.in22k")
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(accumulative_counts=4)
