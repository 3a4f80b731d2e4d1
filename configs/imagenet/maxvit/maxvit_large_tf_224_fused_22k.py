# MaxViT-L on ImageNet-21K at 224: no top-1 is published (arXiv 2204.01697), 233.1 M parameters.
# Total batch 4096: 8 processes x 32 x 16 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/maxvit/maxvit_large_tf_224_fused_22k --launcher pytorch \
#     --amp bf16
# See maxvit_base_tf_224_fused_22k for what is not verified.
_base_ = ["maxvit_base_tf_224_fused_22k.py"]
model = dict(model_name="maxvit_large_tf_224_fused.in21k", drop_path_rate=0.6)
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(accumulative_counts=16)
