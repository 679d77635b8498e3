EXPLAIN SELECT count(*) FROM labels(every := 0.5, top := 3)
