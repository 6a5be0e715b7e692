"""How far readings of reports agree with labels that somebody else gave."""

from __future__ import annotations

from dataclasses import astuple, dataclass


@dataclass
class Agreement:
    """Counts of one finding, or of several together.

    Labels that know three answers (1, -1, 0) are compared as they are; of labels that only tell present from
    the rest, so is the reading.

    Attributes:
        labeled: reports with a label.
        equal: read as labeled.
        swapped: present read for absent or absent for present; of two-valued labels, a denial read where the
            label says present.
        true_positive: present in both.
        false_positive: present only as read.
        false_negative: present only as labeled.
    """

    labeled: int = 0
    equal: int = 0
    swapped: int = 0
    true_positive: int = 0
    false_positive: int = 0
    false_negative: int = 0

    def add(self, status: int, label: int, *, two_valued: bool = False) -> bool:
        """Count one report.

        Args:
            status: as read: 1 present, -1 absent, 0 not mentioned.
            label: likewise; of a two-valued one, -1 is "not present", stated or not.
            two_valued: whether the label is one.

        Returns:
            Whether both say the same.
        """
        same = (status > 0) == (label > 0) if two_valued else status == label
        self.labeled += 1
        self.equal += same
        self.swapped += status * label == -1 and not (two_valued and label < 0)
        self.true_positive += status > 0 and label > 0
        self.false_positive += status > 0 and label <= 0
        self.false_negative += status <= 0 and label > 0
        return same

    @property
    def share(self) -> float:
        """Of the labeled reports, how many are read as labeled."""
        return self.equal / max(1, self.labeled)

    @property
    def precision(self) -> float:
        """Of those read as present, how many are labeled present."""
        return self.true_positive / max(1, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float:
        """Of those labeled present, how many are read as present."""
        return self.true_positive / max(1, self.true_positive + self.false_negative)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        counted = 2 * self.true_positive + self.false_positive + self.false_negative
        return 2 * self.true_positive / max(1, counted)

    def __add__(self, other: Agreement) -> Agreement:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Agreement(*(mine + theirs for mine, theirs in pairs))
