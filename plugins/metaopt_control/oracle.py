"""The ceiling: a policy that is told which task it is in."""

from dataclasses import dataclass

from metaopt_control.randomised import PracticeConfig, Practised


class Oracle(Practised):
    """See what tells the tasks apart beside what is observed, and so need not find it out.

    No learner may have that in earnest; it says how much there is to be gained by adapting.
    """

    name = "oracle"
    is_told = True

    @dataclass(frozen=True)
    class Config(PracticeConfig):
        pass
