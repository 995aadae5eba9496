-- The shop's own tables: what a user of the engine writes. The engine knows nothing of them.

create table accounts (
    owner   text primary key,
    balance int not null constraint no_debts check (balance >= 0)
);

create table orders (
    id     bigint generated always as identity primary key,
    buyer  text not null references accounts,
    amount int not null constraint amount_positive check (amount > 0),
    paid   boolean not null default false
);

-- An order and the task that fulfils it are there together, or neither is, whoever inserts the order.
-- With the rights of the tables' owner: whoever may order need not be allowed to enqueue anything else.
create function enqueue_order() returns trigger
language plpgsql security definer set search_path from current as $$
begin
    perform enqueue('fulfil_order', to_json(new));
    return null;
end
$$;

create trigger enqueue_order after insert on orders for each row execute function enqueue_order();

revoke execute on function enqueue_order from public;
