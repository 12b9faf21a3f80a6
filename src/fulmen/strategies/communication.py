"""How processes talk to each other: the verbs, with bodies for one process."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

__all__ = ["Communication"]

T = TypeVar("T")


class Communication:
    """The part of `Strategy` that moves values between processes. Not used by itself.

    All ranks must call these, in the same order. Here there is one rank.
    """

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return 1

    @property
    def global_rank(self) -> int:
        """Number of this process among all."""
        return 0

    # ---- data-parallel ranks: processes that work together on one model may get the same batches

    @property
    def data_parallel_size(self) -> int:
        """Into how many shares the data are divided: the number of processes, unless several work on one batch."""
        return self.world_size

    @property
    def data_parallel_rank(self) -> int:
        """Which share of the data this process gets; processes that work on one batch together say the same."""
        return self.global_rank

    @property
    def data_parallel_group(self) -> Any:
        """The processes that have, together, each share of the data once, this one among them; `None`: all."""
        return None

    @property
    def speaks_for_share(self) -> bool:
        """Whether this process counts where each share of the data counts once.

        Of the processes with the same share, the one with the lowest rank. Those are neighbours here, as they are on
        every mesh whose first dimensions are the data-parallel ones; a strategy with another mesh overrides this.
        """
        return self.global_rank % (self.world_size // self.data_parallel_size) == 0

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """How data is shared out: `num_replicas` shares, of which this process has number `rank`."""
        return {"num_replicas": self.data_parallel_size, "rank": self.data_parallel_rank}

    @property
    def needs_shadow_steps(self) -> bool:
        """Whether forward passes communicate, so that a rank without data must take part in those of the others."""
        return False

    @property
    def num_exchanges(self) -> int:
        """How often this process has taken part in an exchange so far; always 0 where there is nobody to talk to."""
        return 0

    # ---- tensors

    def all_reduce(self, tensor: Any, group: Any | None = None, reduce_op: Any = "mean") -> Any:
        """Reduce a value over all processes.

        Args:
            tensor: The value of this process: a tensor or a collection of tensors.
            group: The processes; all by default.
            reduce_op: "mean", "sum" or an operator of `torch.distributed`.

        Returns:
            The reduced value; with one process the value itself.
        """
        return tensor

    def all_gather(self, tensor: Any, group: Any | None = None, sync_grads: bool = False) -> Any:
        """Put the tensors of all processes side by side.

        Args:
            tensor: The value of this process: a tensor or a collection of tensors.
            group: The processes; all by default.
            sync_grads: Let gradients flow back.

        Returns:
            Tensors with a new first dimension of the size of the world; with one process the value itself.
        """
        return tensor

    # ---- objects

    def broadcast(self, obj: T, src: int = 0) -> T:
        """Send an object from one process to all.

        Args:
            obj: The object.
            src: The rank that sends.

        Returns:
            The object of rank `src`.
        """
        return obj

    def gather_objects(self, obj: T) -> list[T]:
        """Return what each process passed, by rank, on every process.

        Args:
            obj: What this process contributes; it is pickled.
        """
        return [obj]

    def gather_shares(self, obj: T) -> list[T]:
        """Return what each data-parallel rank passed, in their order, on every process.

        Args:
            obj: What this process contributes; of those with the same share of the data, the first one counts.
        """
        if self.data_parallel_size == self.world_size:
            return self.gather_objects(obj)
        gathered = self.gather_objects((self.data_parallel_rank, obj))
        return [each for _, each in sorted(dict(reversed(gathered)).items())]

    def agree(self, values: list[int], op: Literal["max", "min", "sum"] = "max") -> list[int]:
        """Reduce some integers over all processes, in host memory: the cheapest way to decide something together.

        Args:
            values: As many on each process.
            op: How to reduce them.

        Returns:
            The reduced integers.
        """
        return values

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Decide together.

        Args:
            decision: The opinion of this process.
            all: Whether all must agree; otherwise one is enough.

        Returns:
            The decision.
        """
        return decision

    def barrier(self, name: str | None = None) -> None:
        """Wait for all processes.

        Args:
            name: What for; appears in reports of hangs.
        """

    # ---- when something is wrong

    def meet(self, what: str, timeout_s: float = 30.0) -> None:
        """Make sure that all processes come to this point, instead of waiting for them in the next exchange.

        Args:
            what: What this process did, for the message: "stopped after 5 steps. ... what to do".
            timeout_s: How long to wait for the others, in seconds.

        Raises:
            RuntimeError: Not all have come.
        """

    def report_fault(self, error: BaseException) -> None:
        """Tell the other processes at once that this one fails.

        Args:
            error: What leaves this process.
        """
