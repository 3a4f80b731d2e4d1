# DaViT-H on ImageNet-1K at 224: no top-1 of this training is published (arXiv 2204.03645), 348.9 M parameters.
# Total batch 1024: 8 processes x 32 x 4 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/davit/davit_huge_fused --launcher pytorch --amp fp16
# No weights and no recipe for ImageNet-1K are published: DaViT-B's is taken.
# The paper's numbers for it are from ImageNet-22K or private data.
_base_ = ["davit_tiny_fused.py"]
model = dict(model_name="davit_huge_fused", drop_path_rate=0.4, grad_checkpointing=True)
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(accumulative_counts=4)
