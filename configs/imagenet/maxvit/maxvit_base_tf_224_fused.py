# MaxViT-B on ImageNet-1K at 224: 84.95 % top-1 as published (arXiv 2204.01697, README), 119.5 M parameters.
# Total batch 4096: 8 processes x 64 x 8 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/maxvit/maxvit_base_tf_224_fused --launcher pytorch --amp bf16
# See maxvit_tiny_tf_224_fused for what is not given.
_base_ = ["maxvit_tiny_tf_224_fused.py"]
model = dict(model_name="maxvit_base_tf_224_fused", drop_path_rate=0.4)
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(accumulative_counts=8)
