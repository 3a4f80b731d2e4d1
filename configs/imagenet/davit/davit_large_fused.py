# DaViT-L on ImageNet-1K at 224: no top-1 of this training is published (arXiv 2204.03645), 196.8 M parameters.
# Total batch 1024: 8 processes x 64 x 2 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/davit/davit_large_fused --launcher pytorch --amp fp16
# No weights and no recipe for ImageNet-1K are published: DaViT-B's is taken.
_base_ = ["davit_tiny_fused.py"]
model = dict(model_name="davit_large_fused", drop_path_rate=0.4)
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(accumulative_counts=2)
