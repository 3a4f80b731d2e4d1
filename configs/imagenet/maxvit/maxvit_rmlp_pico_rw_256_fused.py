# MaxViT-RMLP-Pico on ImageNet-1K at 256: 80.5 % top-1 as published (arXiv 2204.01697, timm's notes), 7.5 M parameters.
# Total batch 1024: 8 processes x 128. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/maxvit/maxvit_rmlp_pico_rw_256_fused --launcher pytorch
# timm trained it and gives no recipe: a usual one is taken (like DeiT's, with clipping and averaged weights).
_base_ = ["maxvit_pico_rw_256_fused.py"]
model = dict(model_name="maxvit_rmlp_pico_rw_256_fused")
