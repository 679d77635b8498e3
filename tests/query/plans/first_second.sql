EXPLAIN SELECT ts, label FROM labels WHERE rank = 1 AND ts < 1
