# MaxViT-T (pm) on ImageNet-1K at 256: no top-1 is published (arXiv 2204.01697), 30.1 M parameters.
# Total batch 1024: 8 processes x 128. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/maxvit/maxvit_tiny_pm_256_fused --launcher pytorch
# No weights and no recipe are published: a usual one is taken (like DeiT's, with clipping and averaged weights).
_base_ = ["maxvit_pico_rw_256_fused.py"]
model = dict(model_name="maxvit_tiny_pm_256_fused", drop_path_rate=0.2)
