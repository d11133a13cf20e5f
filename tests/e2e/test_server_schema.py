# SPDX-License-Identifier: Apache-2.0
"""R1: requests that schemathesis makes of the OpenAPI document, right and wrong: nothing of 5xx, answers as documented,
none that takes longer than ten seconds, every block back.

LINNET_SCHEMA_CASES sets how many in all (default 1,500).
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from serving import PATIENCE_S, Awake, Running, digest_model

from linnet.serve import RequestLimits

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed (the dev extra brings it)")

CASES = int(os.environ.get("LINNET_SCHEMA_CASES", "1500"))
KEY = "a-secret-key-of-mine"
HANG_S = 10.0


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with Running(digest_model(num_blocks=512), keys=(KEY,), limits=RequestLimits(deadline_s=5.0)) as running:
        yield running
        running.wait_settled()


def test_nothing_that_the_document_allows_or_forbids_is_a_5xx(server: Running) -> None:
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=server.headers)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 10
    writing = [one for one in operations if one.method.upper() == "POST"]
    seen: dict[int, int] = {}
    slowest_s = 0.0

    def asking(cases: st.SearchStrategy[Any], share: int) -> Callable[[], None]:
        @settings(
            max_examples=share,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(cases)
        def ask(case: Any) -> None:
            nonlocal slowest_s
            began_s = awake.seconds
            response = case.call(base_url=server.url, headers=server.headers, timeout=max(HANG_S, PATIENCE_S))
            slowest_s = max(slowest_s, awake.seconds - began_s)
            assert slowest_s <= HANG_S
            seen[response.status_code] = seen.get(response.status_code, 0) + 1
            case.validate_response(response, checks=checks, headers=server.headers)

        return ask  # type: ignore[no-any-return]

    with Awake() as awake:
        for operation in operations:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                share = CASES * (9 if operation in writing else 1) // (10 * 2 * len(writing)) or 1
                cases = operation.as_strategy(generation_mode=mode)
                with warnings.catch_warnings(), suppress(Unsatisfiable):  # nothing of a GET can be wrong
                    warnings.simplefilter("ignore")
                    asking(cases, share)()
    assert sum(seen.values()) > CASES // 2, seen
    assert not [status for status in seen if status >= 500], seen
    print(f"{sum(seen.values())} requests, the slowest {slowest_s:.2f} s; by status: {dict(sorted(seen.items()))}")
