# MaxViT-S on ImageNet-1K at 224: 84.45 % top-1 as published (arXiv 2204.01697, README), 68.9 M parameters.
# Total batch 4096: 8 processes x 128 x 4 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/maxvit/maxvit_small_tf_224_fused --launcher pytorch --amp bf16
# See maxvit_tiny_tf_224_fused for what is not given.
_base_ = ["maxvit_tiny_tf_224_fused.py"]
model = dict(model_name="maxvit_small_tf_224_fused", drop_path_rate=0.3)
