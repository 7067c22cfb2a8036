"""`/v1/usage`: what each API key has used of each model."""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from server.dependencies import StateDep
from server.http.admin import has_admin_key
from server.http.request_trace import current_trace
from server.http.usage import MAX_DAYS, Rows
from server.protocol.answers import error_answers
from server.protocol.usage import DayOfUsage, UsageReport, UsageRow

router = APIRouter(tags=["operations"])


@router.get("/v1/usage", summary="Usage by API key and model", responses=error_answers(401))
async def get_usage(
    request: Request,
    state: StateDep,
    days: Annotated[int, Query(ge=0, le=MAX_DAYS, description="Newest days to list.")] = 7,
) -> UsageReport:
    """Counts requests that have ended, since the server started and on each day (UTC). An API key
    gets its own numbers, an admin key those of all keys."""
    key, sees_all = current_trace().key, has_admin_key(request.scope)

    def shown(rows: Rows) -> list[UsageRow]:
        return [
            UsageRow(
                api_key=user.key,
                model=user.model,
                operation=user.operation,
                **{name: getattr(used, name) for name in used.__slots__},
            )
            for user, used in rows.items()
            if sees_all or user.key == key
        ]

    usage = state.usage
    newest = list(reversed(usage.days.items()))[:days]
    return UsageReport(
        since=int(usage.since_s),
        data=shown(usage.total),
        days=[DayOfUsage(date=date, data=shown(rows)) for date, rows in newest],
    )
