-- Version 4: which jobs need no more than a place when the last of their parents has succeeded; see succeeding.sql.

alter table offload.children add column straight boolean not null default false;
