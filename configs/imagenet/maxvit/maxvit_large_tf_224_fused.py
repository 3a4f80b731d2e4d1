# MaxViT-L on ImageNet-1K at 224: 85.17 % top-1 as published (arXiv 2204.01697, README), 211.8 M parameters.
# Total batch 4096: 8 processes x 32 x 16 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/maxvit/maxvit_large_tf_224_fused --launcher pytorch --amp bf16
# See maxvit_tiny_tf_224_fused for what is not given.
_base_ = ["maxvit_tiny_tf_224_fused.py"]
model = dict(model_name="maxvit_large_tf_224_fused", drop_path_rate=0.6)
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(accumulative_counts=16)
