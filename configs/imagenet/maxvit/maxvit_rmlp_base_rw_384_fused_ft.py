# MaxViT-RMLP-B from ImageNet-12K at 384: its top-1 is not verified (arXiv 2204.01697), 116.1 M parameters.
# Total batch 512: 8 processes x 32 x 2 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/maxvit/maxvit_rmlp_base_rw_384_fused_ft --launcher pytorch
# timm trained it and gives no recipe: a usual one for fine-tuning is taken.
_base_ = ["maxvit_rmlp_base_rw_224_fused_ft.py"]
model = dict(model_name="maxvit_rmlp_base_rw_384_fused.sw_in12k_ft_in1k")
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(accumulative_counts=2)
