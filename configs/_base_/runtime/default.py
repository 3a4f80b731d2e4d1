# What every run shares: how it is logged, saved, seeded and resumed.
custom_imports = dict(imports=["vertebra.engine"])
runner_type = "VertebraRunner"
default_scope = "mmengine"
default_hooks = dict(
    runtime_info=dict(type="RuntimeInfoHook"),
    timer=dict(type="IterTimerHook"),
    param_scheduler=dict(type="ParamSchedulerHook"),
    logger=dict(type="LoggerHook", interval=10, ignore_last=False),
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=3, backend_args=dict(backend="atomic")),
)
# VertebraRunner adds what resuming and watching need; this list is free for a config to replace
custom_hooks = [dict(type="UnreadableImagesHook", limit=20)]
env_cfg = dict(
    cudnn_benchmark=True, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0), dist_cfg=dict(backend="nccl")
)
log_processor = dict(by_epoch=True, window_size=10)
visualizer = dict(type="Visualizer", vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")])
log_level = "INFO"
randomness = dict(seed=0)
load_from = None
resume = False
launcher = "none"
