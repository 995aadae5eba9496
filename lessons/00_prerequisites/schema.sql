-- A theatre. A seat is free until it is sold, and it is never sold twice: SellSeat changes only a
-- free one. Whoever wants "the first free seat" locks it first, so that two cannot want the same.

create table seats (
    number  int primary key,
    sold_to text             -- null: free
);

comment on table seats is 'A seat in the theatre, free until it is sold.';

insert into seats (number)
select generate_series(1, 6);
