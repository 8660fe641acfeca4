"""The paper's protocol on one environment, stage by stage."""
