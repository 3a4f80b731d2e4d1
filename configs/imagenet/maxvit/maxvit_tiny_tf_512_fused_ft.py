# MaxViT-T fine-tuned at 512: 85.72 % top-1 as published (arXiv 2204.01697, README), 31.0 M parameters.
# Total batch 512: 8 processes x 16 x 4 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/maxvit/maxvit_tiny_tf_512_fused_ft --launcher pytorch --amp bf16
# Augmentation, clipping and averaging are those of the training at 224.
_base_ = ["maxvit_tiny_tf_384_fused_ft.py"]
model = dict(model_name="maxvit_tiny_tf_512_fused.in1k", weights="maxvit_tiny_tf_224_fused.in1k", drop_path_rate=0.2)
train_dataloader = dict(batch_size=16)
val_dataloader = dict(dataset=dict(transform=dict(crop_pct=0.941, crop_mode="center")), batch_size=32)
test_dataloader = val_dataloader
optim_wrapper = dict(accumulative_counts=4)
