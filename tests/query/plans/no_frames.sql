EXPLAIN SELECT label FROM labels WHERE ts < 0
