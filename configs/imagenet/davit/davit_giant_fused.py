# DaViT-G on ImageNet-1K at 224: no top-1 of this training is published (arXiv 2204.03645), 1406.5 M parameters.
# Total batch 1024: 8 processes x 16 x 8 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/davit/davit_giant_fused --launcher pytorch --amp fp16
# No weights and no recipe for ImageNet-1K are published: DaViT-B's is taken.
# The README has 90.4 % after 1.5 billion pairs of images and texts.
_base_ = ["davit_tiny_fused.py"]
model = dict(model_name="davit_giant_fused", drop_path_rate=0.4, grad_checkpointing=True)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(accumulative_counts=8)
