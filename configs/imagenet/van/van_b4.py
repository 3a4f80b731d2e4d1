# VAN-B4 on ImageNet-1K at 224: 84.2 % top-1 as published (arXiv 2202.09741, Table 7), 60.3 M parameters.
# Total batch 1024: 8 processes x 128. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/van/van_b4 --launcher pytorch
# Its drop path is not given for ImageNet-1K: VAN-B3's is taken.
_base_ = ["van_b0.py"]
model = dict(model_name="van_b4", drop_path_rate=0.2)
