# MaxViT-L from ImageNet-21K at 384: no top-1 in the README (arXiv 2204.01697), 212.0 M parameters.
# Total batch 512: 8 processes x 16 x 4 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/maxvit/maxvit_large_tf_384_fused_22k_ft --launcher pytorch \
#     --amp bf16
# The authors give fine-tuning for MaxViT-T alone: its values are taken, with this size's drop path.
# The paper has up to 88.7 % for models from ImageNet-21K.
_base_ = ["maxvit_tiny_tf_384_fused_ft.py"]
model = dict(
    model_name="maxvit_large_tf_384_fused.in21k_ft_in1k",
    weights="maxvit_large_tf_224_fused.in21k",
    drop_path_rate=0.6,
)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(accumulative_counts=4)
