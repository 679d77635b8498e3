EXPLAIN SELECT embedding FROM embed e JOIN videos v USING (video_id) WHERE v.name = 'yard.mp4'
