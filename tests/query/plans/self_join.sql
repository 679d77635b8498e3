EXPLAIN SELECT a.label, b.label FROM labels a JOIN labels b USING (video_id, frame) WHERE a.segment = 0
