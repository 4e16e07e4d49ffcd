"""Which tests are in the fast subset, and how many processes run the tests."""

from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).parents[1]
HEAVY = frozenset({"tensorflow", "keras", "nvidia.dali"})

# Modules of `pytest -m fast`: they test decisions and files, and import no TensorFlow.
# A test in one of these modules that needs TensorFlow or many seconds is marked with `pytest.mark.slow`.
FAST_MODULES = frozenset(
    {
        "test_adopt",
        "test_advice",
        "test_ahead",
        "test_augment",
        "test_augmentation_text",
        "test_balanced",
        "test_bench",
        "test_bench_storage",
        "test_build",
        "test_build_end",
        "test_build_stopped",
        "test_check",
        "test_class_match",
        "test_checkpoint_file",
        "test_class_names",
        "test_class_weights",
        "test_clean",
        "test_cluster",
        "test_commands",
        "test_defaults",
        "test_contents",
        "test_demo",
        "test_docs",
        "test_doctor_storage",
        "test_errors",
        "test_export_shards",
        "test_fetcher",
        "test_files",
        "test_folders",
        "test_foreign_shards",
        "test_freezing",
        "test_fuzz",
        "test_holdout",
        "test_idle_flags",
        "test_image_head",
        "test_imports",
        "test_index",
        "test_index_files",
        "test_kept_model",
        "test_leftovers",
        "test_limits",
        "test_lists",
        "test_lock",
        "test_metadata",
        "test_mixed_layouts",
        "test_native",
        "test_open_files",
        "test_operation",
        "test_packaging",
        "test_order",
        "test_pages",
        "test_parquet",
        "test_paths",
        "test_pixels",
        "test_plan",
        "test_policy",
        "test_printed_commands",
        "test_printed_remedies",
        "test_recipes",
        "test_records",
        "test_regular_files",
        "test_remedies",
        "test_repeats",
        "test_run_directory",
        "test_schedule",
        "test_selection",
        "test_shards",
        "test_shuffle",
        "test_site",
        "test_size_check",
        "test_slow_storage",
        "test_sources",
        "test_spans",
        "test_streams",
        "test_style",
        "test_stream",
        "test_tars",
        "test_tools_models",
        "test_train_settings",
        "test_train_report",
        "test_uniform",
        "test_unlisted",
        "test_waits",
        "test_watch",
        "test_webdataset",
        "test_worker",
    }
)

_WORKER_MEMORY = 4 << 30  # bytes: a worker and the processes that its tests start


def default_workers(arguments: Sequence[str], keyword: str, cores: int, memory: int) -> int:
    """The number of worker processes where the command line gives none; 0 runs the tests in pytest's own process.

    Workers help where many tests run, so they start for whole folders only. A few tests end sooner without them.

    Args:
        arguments: the files and folders of the command line; none means all tests.
        keyword: the expression of `-k`.
        cores: the processor cores that the tests may use.
        memory: bytes of the machine's memory.
    """
    folders = [Path(argument).resolve() for argument in arguments]
    few = keyword or not all(folder.is_dir() and folder.is_relative_to(TESTS) for folder in folders)
    workers = min(cores + 1, memory // _WORKER_MEMORY)  # some tests wait for clocks and signals
    return 0 if few or cores < 2 or workers < 2 else workers
