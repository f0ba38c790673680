# What a process needs at its start is inferred when the package is precompiled, not when it is first called.

for X in (Masked{Matrix{UInt8}}, Masked{Matrix{Int32}}, Matrix{UInt8}, Matrix{Int32}, SoftEvidence)
    precompile(log_likelihood!, (Matrix{Float64}, Plan, X, UnitRange{Int}))
    precompile(forward!, (Workspace, Plan, X))
end
for X in (Matrix{UInt8}, Matrix{Int32}, SoftEvidence)
    precompile(EMJob, (Circuit, X, Vector{Int32}))
    precompile(em_job, (Circuit, X, Vector{Int32}, Vector{Float32}, Int, Int, Float64, Float64, Float64, Bool, Int))
    precompile(advance!, (EMJob{X}, Float64))
    precompile(em_step!, (EMJob{X}, Int, Int))
    precompile(flows!, (Statistics, Workspace, Plan, X, Sources, Int))
    X == SoftEvidence || precompile(mutual_information_job, (X, Int, Float64))
end
for X in (Matrix{UInt8}, Matrix{Int32})
    precompile(flow_job, (Plan, X, Nothing, Vector{Int32}, Vector{Float32}))
    precompile(advance!, (FlowJob{X}, Float64))
    precompile(has_silent_edges, (FlowJob{X}, Float64))
    precompile(prune_by_flow, (FlowJob{X}, Float64))
    precompile(unit_flows, (FlowJob{X},))
end
for X in (Array{UInt8,3}, Array{Int32,3})
    precompile(advance!, (JointEMJob{eltype(X)}, Float64))
    precompile(joint_step!, (JointEMJob{eltype(X)}, Vector{Int32}))
end
for X in (Matrix{UInt8}, Matrix{Int32})
    precompile(flows!, (Statistics, Workspace, Plan, X, Responsibilities, Int))
    precompile(circuit_step!, (Plan, X, Matrix{Float32}, UnitRange{Int}, Float64, Float64))
end
precompile(grow_circuit, (Circuit, Vector{Float64}, Float64, Vector{Int}, Float64, Float64, Int, Bool))
precompile(circuit_with_heads, (Circuit, Vector{Int32}))
precompile(advance!, (MutualInformationJob, Float64))
precompile(hclt_circuit, (Matrix{Float64}, Int, Int, Int, Float64, Int))
precompile(apply!, (Plan, Vector{Statistics}, Float64, Float64))
precompile(Plan, (Circuit,))
precompile(read_jpc, (String,))
precompile(JpcWriter, (String, Circuit, String))
precompile(advance!, (JpcWriter, Float64))
