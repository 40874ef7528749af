-- Version 4: what the links of a job come to, so that a success need not be written to each of them. See docs/decisions/0014.

create table children (
    n integer primary key,          -- the job that waits
    open integer not null,          -- for how many parents
    straight integer not null       -- 1 where it needs no more than a place in its ready line once they have succeeded
);
insert into children (n, open, straight) select child, sum(fate = 0), 0 from links group by child;

drop index links_parent;
create index links_parent on links (parent, flow, child, fate);
