EXPLAIN SELECT label FROM labels(min_fidelity := 0.99, on_error := 'skip', stride := 10)
