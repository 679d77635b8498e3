EXPLAIN SELECT f.image, l.label FROM frames f JOIN labels l USING (video_id, frame) WHERE l.ts BETWEEN 1 AND 2
