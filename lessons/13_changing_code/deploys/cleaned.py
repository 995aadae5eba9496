"""No order is left that began without the check: the patches are taken out."""

from app import Order, charge_card, check_fraud, send, send_confirmation, weigh
from context import Context, durable
from tasks import task


@durable
def sell(ctx: Context, order: Order) -> str:
    ctx.step(check_fraud, order)
    payment = ctx.step(charge_card, order)
    ctx.receive("packed")
    ctx.step(send_confirmation, order)
    return payment


@durable
def send_all(ctx: Context, order: Order) -> None:
    for parcel in range(4):
        ctx.step(weigh, order, parcel)
        ctx.step(send, order, parcel)
        if parcel == 1:
            ctx.receive("more boxes")


@task
def send_coupon(order: int) -> str:
    return f"coupon for order {order}"
