"""What type checkers see of ckptstore: the public names, which `__init__.py` imports on first use."""

from ckptstore import inspect_checkpoint as inspect_checkpoint
from ckptstore.cache.cache import Cache as Cache, CachedCheckpoint as CachedCheckpoint
from ckptstore.directory.pins import pin as pin, unpin as unpin
from ckptstore.directory.retention_rules import (
    Best as Best,
    EveryHours as EveryHours,
    EveryNSteps as EveryNSteps,
    Latest as Latest,
    YoungerThan as YoungerThan,
)
from ckptstore.distributed.coordinator import Coordinator as Coordinator
from ckptstore.distributed.engines import coordinator as coordinator
from ckptstore.distributed.preemption import Preemption as Preemption
from ckptstore.errors import (
    AccessError as AccessError,
    AmbiguousOutcomeError as AmbiguousOutcomeError,
    ChecksumError as ChecksumError,
    CkptStoreError as CkptStoreError,
    CkptStoreWarning as CkptStoreWarning,
    ConflictError as ConflictError,
    CoordinatorLostError as CoordinatorLostError,
    CorruptError as CorruptError,
    DeadlineError as DeadlineError,
    FencedError as FencedError,
    FormatError as FormatError,
    IncompleteBundleError as IncompleteBundleError,
    NotFoundError as NotFoundError,
    RanksMissingError as RanksMissingError,
    SaveCancelledError as SaveCancelledError,
    StorageFullError as StorageFullError,
    TensorNotFoundError as TensorNotFoundError,
    TransientError as TransientError,
    TruncatedFileError as TruncatedFileError,
    UnsupportedError as UnsupportedError,
    UsageError as UsageError,
)
from ckptstore.graph import (
    Graph as Graph,
    GraphBuilder as GraphBuilder,
    Operation as Operation,
    SaverDef as SaverDef,
    Tensor as Tensor,
)
from ckptstore.reading.open_checkpoint import (
    OpenCheckpoint as OpenCheckpoint,
    RestoreReport as RestoreReport,
    open_checkpoint as open_checkpoint,
)
from ckptstore.saving.handle import SaveHandle as SaveHandle
from ckptstore.saving.report import RankReport as RankReport
from ckptstore.saving.report import SaveReport as SaveReport
from ckptstore.serving.live import Live as Live, LiveHealth as LiveHealth
from ckptstore.serving.step import Step as Step
from ckptstore.serving.watch import WatchHealth as WatchHealth, Watcher as Watcher, watch as watch
from ckptstore.train.bundle_writer import (
    BundleWriter as BundleWriter,
    merge_bundles as merge_bundles,
    part_prefix as part_prefix,
)
from ckptstore.train.checkpoint import Checkpoint as Checkpoint, Optimizer as Optimizer
from ckptstore.train.checkpoint_management import (
    CheckpointState as CheckpointState,
    checkpoint_exists as checkpoint_exists,
    checkpoints_iterator as checkpoints_iterator,
    get_checkpoint_mtimes as get_checkpoint_mtimes,
    get_checkpoint_state as get_checkpoint_state,
    latest_checkpoint as latest_checkpoint,
    remove_checkpoint as remove_checkpoint,
    update_checkpoint_state as update_checkpoint_state,
    wait_for_new_checkpoint as wait_for_new_checkpoint,
)
from ckptstore.train.checkpoint_manager import CheckpointManager as CheckpointManager
from ckptstore.train.checkpoint_reader import (
    CheckpointReader as CheckpointReader,
    list_variables as list_variables,
    load_checkpoint as load_checkpoint,
    load_variable as load_variable,
)
from ckptstore.train.import_meta_graph import import_meta_graph as import_meta_graph
from ckptstore.train.meta_graph import export_meta_graph as export_meta_graph
from ckptstore.train.saver import Saver as Saver
from ckptstore.transfer.progress import Event as Event
from ckptstore.types import DType as DType, Piece as Piece, TensorSpec as TensorSpec

__version__: str
