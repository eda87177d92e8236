"""``tf.compat.v1.train.Saver`` on any storage: the session stays, the files are ckptstore's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import ckptstore.train.saver as plain
from ckptstore.errors import UsageError
from ckptstore.saving.arguments import KEEP_HOURS, MAX_TO_KEEP, V2, check_supported, step_number
from ckptstore.saving.handle import SaveHandle
from ckptstore.tensorflow.framework import import_tensorflow
from ckptstore.tensorflow.variables import EagerVariables, GraphVariables, Variables
from ckptstore.train.meta_graph import export_meta_graph, load_meta_graph
from ckptstore.types import Options, PathText

__all__ = ["Saver", "import_meta_graph"]


class Saver:
    """Saves and restores the variables of a session, in the place of ``tf.compat.v1.train.Saver``.

    Positional arguments and defaults are TensorFlow's. The Saver adds the operations to the graph that
    TensorFlow's adds, so that what it writes is imported and restored by TensorFlow, but none of them touches
    a file. In eager TensorFlow it saves and restores variables by name; the session is None then.

    Parameters
    ----------
    var_list : list or dict, optional
        Variables, other saveable objects or names of variables; or name in the checkpoint → variable. None:
        all. A partitioned variable, or the list of its parts, is stored as slices of one tensor. In eager
        TensorFlow variables must be given.
    reshape : bool
        On restore, take a tensor of another shape if the number of elements agrees.
    sharded : bool
        One data file for each device that the graph places a variable on.
    max_to_keep, keep_checkpoint_every_n_hours, pad_step_number, allow_empty, save_relative_paths :
        As for `ckptstore.Saver`.
    name, restore_sequentially, saver_def, builder, defer_build, filename :
        As for TensorFlow's Saver.
    write_version : int
        2. V1 checkpoints are read, not written.
    **options
        Further keyword arguments of `ckptstore.Saver`, but for `graph` and `coordinator`: `retention`,
        `deadline_s`, `memory_budget`, `storage_options` and more.

    Raises
    ------
    UnsupportedError
        If TensorFlow is not installed, or V1 is asked for.
    UsageError
        If an argument is wrong, or there are no variables.

    Notes
    -----
    A Saver is a context manager: leaving the block is `close`.

    Threads
    -------
    One thread at a time.
    """

    def __init__(
        self,
        var_list: Any = None,
        reshape: bool = False,
        sharded: bool = False,
        max_to_keep: int | None = MAX_TO_KEEP,
        keep_checkpoint_every_n_hours: float = KEEP_HOURS,
        name: str | None = None,
        restore_sequentially: bool = False,
        saver_def: Any = None,
        builder: Any = None,
        defer_build: bool = False,
        allow_empty: bool = False,
        write_version: int = V2,
        pad_step_number: bool = False,
        save_relative_paths: bool = False,
        filename: str | None = None,
        **options: Any,
    ) -> None:
        tensorflow = import_tensorflow()
        check_supported(builder=None, write_version=write_version, defer_build=defer_build, var_list=var_list)
        for refused in {"graph", "coordinator"} & options.keys():
            raise UsageError(f"a Saver of sessions takes no {refused!r}")
        self._reshape = reshape
        self._sharded = sharded if saver_def is None else saver_def.sharded
        self._options = options | {
            "max_to_keep": max_to_keep,
            "keep_checkpoint_every_n_hours": keep_checkpoint_every_n_hours,
            "sharded": sharded,
            "allow_empty": allow_empty,
            "pad_step_number": pad_step_number,
        }
        if saver_def is not None:
            self._options["saver_def"] = saver_def
        self._native: Any = None
        self._variables: Variables | None = None
        self._plain: plain.Saver | None = None
        self._graph_version: tuple[object, ...] | None = None
        if tensorflow.executing_eagerly() and saver_def is None:
            if not var_list:
                raise UsageError(
                    "eager TensorFlow has no list of all variables", hint="Pass var_list={name: variable}."
                )
            self._start(EagerVariables(var_list))
            return
        try:
            self._native = tensorflow.compat.v1.train.Saver(
                _variables_of(tensorflow, var_list),
                reshape=reshape,
                sharded=sharded,
                max_to_keep=0 if max_to_keep is None else int(max_to_keep),
                keep_checkpoint_every_n_hours=float(keep_checkpoint_every_n_hours),
                name=name,
                restore_sequentially=restore_sequentially,
                saver_def=saver_def,
                builder=builder,
                defer_build=defer_build,
                allow_empty=allow_empty,
                pad_step_number=pad_step_number,
                save_relative_paths=save_relative_paths,
                filename=filename,
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise UsageError(str(error).partition("\n")[0][:400]) from error
        if not defer_build:
            self._take_native()

    def _take_native(self) -> None:
        # Without variables there are no operations, and no names of them.
        if not self._native.as_saver_def().save_tensor_name:
            self._start(None)
            return
        self._start(GraphVariables(self._native))

    def _start(self, variables: Variables | None) -> None:
        names = [] if variables is None else variables.names
        self._variables = variables
        self._plain = plain.Saver(names, reshape=True, **self._options)

    def build(self) -> None:
        """Add the operations to the graph, after ``defer_build=True``."""
        if self._plain is None:
            self._native.build()
            self._take_native()

    @property
    def _built(self) -> plain.Saver:
        if self._plain is None:
            raise UsageError("`build()` should be called before save if defer_build==True")
        return self._plain

    def save(
        self,
        sess: Any,
        save_path: PathText,
        global_step: Any = None,
        latest_filename: str | None = None,
        meta_graph_suffix: str = "meta",
        write_meta_graph: bool = True,
        write_state: bool = True,
        strip_default_attrs: bool = False,
        save_debug_info: bool = False,
        *,
        metrics: Mapping[str, float] | None = None,
        storage_options: Options = None,
    ) -> str | None:
        """Save the variables of a session as one checkpoint; see `ckptstore.Saver.save`.

        Parameters
        ----------
        sess : tf.compat.v1.Session or None
            Of the graph of this Saver; also a monitored one, whose hooks do not run. None in eager
            TensorFlow.
        global_step : int, variable or tensor, optional
            Appended to the prefix as ``-<step>``.
        save_path, latest_filename, meta_graph_suffix, write_state, metrics, storage_options :
            As there.
        write_meta_graph : bool
            Write the graph as ``PREFIX.meta``, which TensorFlow imports. Eager TensorFlow has none: there
            it is made of the variables.
        strip_default_attrs : bool
            Leave attributes with default values out of the graph.
        save_debug_info : bool
            Must be False.

        Returns
        -------
        str or None
            The prefix of the checkpoint; None if there was nothing to save and `allow_empty` is set.

        Raises
        ------
        UsageError
            If a variable has no value yet, or an argument is wrong. Nothing was written.
        CkptStoreError
            As `ckptstore.Saver.save`.
        """
        step, values = self._taken(sess, global_step, write_meta_graph, strip_default_attrs)
        return self._built.save(
            values,
            save_path,
            step,
            latest_filename,
            meta_graph_suffix,
            write_meta_graph,
            write_state,
            save_debug_info=save_debug_info,
            metrics=metrics,
            storage_options=storage_options,
        )

    def save_async(
        self,
        sess: Any,
        save_path: PathText,
        global_step: Any = None,
        *,
        write_meta_graph: bool = True,
        metrics: Mapping[str, float] | None = None,
        storage_options: Options = None,
    ) -> SaveHandle:
        """Take the values now, and save them in the background.

        Parameters and errors as `save`; what `ckptstore.Saver.save_async` says of failures holds here.

        Parameters
        ----------
        sess, save_path, global_step, write_meta_graph, metrics, storage_options :
            As for `save`.

        Returns
        -------
        SaveHandle
            Ask it for the `result`.
        """
        step, values = self._taken(sess, global_step, write_meta_graph, False)
        # The values are copies already.
        return self._built.save_async(
            values,
            save_path,
            step,
            write_meta_graph=write_meta_graph,
            snapshot=False,
            metrics=metrics,
            storage_options=storage_options,
        )

    def _taken(
        self, session: Any, global_step: Any, writes_graph: bool, strip_default_attrs: bool
    ) -> tuple[int | None, dict[str, Any]]:
        """Return step and values, and let the Saver below have the graph."""
        saver, variables = self._built, self._variables
        values = {} if variables is None else variables.fetch(session)
        if isinstance(variables, GraphVariables) and (writes_graph or self._sharded):
            version = (variables.version, strip_default_attrs)
            if version != self._graph_version:
                data = variables.meta_graph(strip_default_attrs=strip_default_attrs)
                saver.graph = load_meta_graph(data)
                self._graph_version = version
        return _step(global_step, session), values

    def restore(
        self,
        sess: Any,
        save_path: PathText | None,
        *,
        storage_options: Options = None,
    ) -> None:
        """Set the variables of a session to the tensors of a checkpoint, all of them or none.

        Parameters
        ----------
        sess : tf.compat.v1.Session or None
            Its variables need not be initialized. None in eager TensorFlow.
        save_path : str or PathLike
            Prefix or URL, such as `latest_checkpoint` returns; its None is refused here.
        storage_options : mapping, optional
            Goes to the backend as it is. By default those of the Saver.

        Raises
        ------
        UsageError
            If a shape (without ``reshape=True``) or type differs, or `save_path` is None.
        TensorNotFoundError
            If the checkpoint lacks a variable.
        CkptStoreError
            As `ckptstore.Saver.restore`. No variable was changed.
        """
        saver, variables = self._built, self._variables
        if variables is None:
            raise UsageError("this Saver was made without variables: there is nothing to restore")
        values = variables.wanted()
        saver.restore(values, save_path, storage_options=storage_options)
        variables.assign(sess, values, reshape=self._reshape)

    def close(self) -> None:
        """Wait for the saves in flight, and raise the first unreported failure; it can be used again."""
        if self._plain is not None:
            self._plain.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._plain is not None:
            self._plain.__exit__(kind, error, trace)

    @property
    def last_checkpoints(self) -> list[str]:
        """Prefixes that retention still counts, oldest first; empty if everything is kept."""
        return self._built.last_checkpoints

    def set_last_checkpoints(self, last_checkpoints: Sequence[str]) -> None:
        """Let retention count these prefixes, oldest first; none of them is ever deleted."""
        self._built.set_last_checkpoints(last_checkpoints)

    def set_last_checkpoints_with_time(self, last_checkpoints_with_time: Sequence[tuple[str, float]]) -> None:
        """Let retention count these ``(prefix, seconds since 1970)``, oldest first, and nothing else."""
        self._built.set_last_checkpoints_with_time(last_checkpoints_with_time)

    def recover_last_checkpoints(
        self, checkpoint_paths: Sequence[str], *, storage_options: Options = None
    ) -> None:
        """Let retention count those of these prefixes that exist, dated by their files."""
        self._built.recover_last_checkpoints(checkpoint_paths, storage_options=storage_options)

    def as_saver_def(self) -> Any:
        """Return TensorFlow's ``SaverDef`` of this Saver.

        Raises
        ------
        UsageError
            In eager TensorFlow, which has no graph.
        """
        return self._in_graph().native.as_saver_def()

    def to_proto(self, export_scope: str | None = None) -> Any:
        """Return `as_saver_def` without `export_scope` in its names; None if they lie outside of it."""
        return self._in_graph().native.to_proto(export_scope)

    @staticmethod
    def from_proto(saver_def: Any, import_scope: str | None = None) -> Saver:
        """Return a Saver with the settings of `saver_def`, for operations that the graph has."""
        return Saver(saver_def=saver_def, name=import_scope)

    def export_meta_graph(
        self,
        filename: PathText | None = None,
        as_text: bool = False,
        clear_extraneous_savers: bool = False,
        strip_default_attrs: bool = False,
        *,
        storage_options: Options = None,
    ) -> bytes:
        """Return the graph as a serialized ``MetaGraphDef``, and write it to `filename` if given.

        Parameters
        ----------
        filename : str or PathLike, optional
            File or URL to write; replaced at once if it is there.
        as_text : bool
            Text form instead of binary.
        clear_extraneous_savers, strip_default_attrs : bool
            As for TensorFlow's.
        storage_options : mapping, optional
            Goes to the backend as it is.

        Raises
        ------
        UsageError
            In eager TensorFlow, which has no graph.
        """
        data = self._in_graph().meta_graph(
            clear_extraneous_savers=clear_extraneous_savers, strip_default_attrs=strip_default_attrs
        )
        return export_meta_graph(
            filename, graph=load_meta_graph(data), as_text=as_text, storage_options=storage_options
        )

    def _in_graph(self) -> GraphVariables:
        if not isinstance(self._variables, GraphVariables):
            raise UsageError("this Saver has no graph", hint="In eager TensorFlow there is none.")
        return self._variables


def import_meta_graph(
    meta_graph_or_file: Any,
    clear_devices: bool = False,
    import_scope: str | None = None,
    *,
    storage_options: Options = None,
    **options: Any,
) -> Saver | None:
    """Add the graph of a ``.meta`` to the default graph, and return a Saver for it.

    Parameters
    ----------
    meta_graph_or_file : str, PathLike, bytes or message
        File or URL; or a ``MetaGraphDef``, also serialized.
    clear_devices : bool
        Drop device placements.
    import_scope : str, optional
        Put before every name of the graph.
    storage_options : mapping, optional
        Goes to the backend as it is; the Saver has them, too.
    **options
        Of `ckptstore.Saver`, for the Saver.

    Returns
    -------
    Saver or None
        None if the graph has neither a saver nor variables, as in TensorFlow.

    Raises
    ------
    NotFoundError
        If the file does not exist.
    FormatError
        If it is no MetaGraphDef.
    UsageError
        If TensorFlow cannot import it.
    UnsupportedError
        If TensorFlow is not installed.
    """
    tensorflow = import_tensorflow()
    tf1 = tensorflow.compat.v1
    data = export_meta_graph(graph=load_meta_graph(meta_graph_or_file, storage_options=storage_options))
    message = tf1.MetaGraphDef.FromString(data)
    try:
        native = tf1.train.import_meta_graph(message, clear_devices, import_scope)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UsageError(
            f"TensorFlow cannot import the graph: {str(error).partition(chr(10))[0]}"[:400]
        ) from error
    if native is None:
        return None
    if storage_options is not None:
        options.setdefault("storage_options", storage_options)
    return Saver(saver_def=native.as_saver_def(), **options)


def _variables_of(tensorflow: Any, var_list: Any) -> Any:
    """Return what TensorFlow's Saver takes: variables in the place of their names."""
    if not isinstance(var_list, list | tuple) or not any(isinstance(one, str) for one in var_list):
        return var_list
    tf1 = tensorflow.compat.v1
    known = {variable.op.name: variable for variable in tf1.global_variables()}
    found = []
    for one in var_list:
        if isinstance(one, str) and one not in known:
            raise UsageError("the graph has no global variable of this name", actual=repr(one))
        found.append(known[one] if isinstance(one, str) else one)
    return found


def _step(global_step: Any, session: Any) -> int | None:
    tensorflow = import_tensorflow()
    if isinstance(global_step, tensorflow.Variable | tensorflow.Tensor):
        if not tensorflow.executing_eagerly():
            raw = session.raw_session() if hasattr(session, "raw_session") else session
            return step_number(raw.run(global_step))
        return step_number(global_step.numpy())
    return None if global_step is None else step_number(global_step)
