"""Search: the best candidates of a space, by accuracy and latency."""

from convatlas.core.choice import choose as choose
from convatlas.search.exploration import Evaluate as Evaluate
from convatlas.search.exploration import explore as explore
from convatlas.search.explorer import Explorer as Explorer
from convatlas.search.space import Candidate as Candidate
from convatlas.search.space import Space as Space
from convatlas.search.space import SpecSpace as SpecSpace
from convatlas.search.study import Study as Study
from convatlas.search.study import Trial as Trial
