insert into tasks (name, input) values ('nothing', 'null');
