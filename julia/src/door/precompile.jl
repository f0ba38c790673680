# What a process needs at its start is inferred when the package is precompiled, not when it is first called.

"The statements below that name no method, because it was changed: a test wants none."
const STALE = Any[]

precompile(f, types) = Base.precompile(f, types) || push!(STALE, (f, types))

for X in (Masked{Matrix{UInt8}}, Masked{Matrix{Int32}}, Matrix{UInt8}, Matrix{Int32}, SoftEvidence)
    precompile(log_likelihood!, (Matrix{Float64}, CPUEngine, X, UnitRange{Int}))
    precompile(certain_log_likelihood!, (Matrix{Float64}, CPUEngine, X, UnitRange{Int}))
    precompile(forward!, (Workspace, Plan, X))
end
for X in (Matrix{UInt8}, Matrix{Int32}, SoftEvidence)
    precompile(em_job, (Circuit, X, Vector{Int32}, Vector{Float32}, Int, Int, Float64, Float64, Float64, Bool, Int, Int))
    precompile(advance!, (EMJob{X,CPUEngine}, Float64))
    precompile(accumulate!, (CPUEngine, X, Sources, Vector{Int32}, UnitRange{Int}))
end
for X in (Matrix{UInt8}, Matrix{Int32})
    precompile(mutual_information_job, (X, Int, Float64))
    precompile(apply_batch!, (CPUEngine, BatchInputs, X, Float32, Float32))
    precompile(flow_job, (Plan, X, Nothing, Vector{Int32}, Vector{Float32}))
    precompile(advance!, (FlowJob{X,CPUEngine}, Float64))
    precompile(accumulate!, (CPUEngine, X, Responsibilities, UnitRange{Int}, UnitRange{Int}))
    precompile(head_scores!, (Array{Float32,3}, Vector{CPUEngine}, Vector{Tuple{UnitRange{Int},UnitRange{Int}}}, Array{eltype(X),3}, Nothing, Nothing))
    precompile(joint_em_job, (Array{eltype(X),3}, Nothing, Int, Int, Float64, Float64, Float64, Float64, Int, Bool, Circuit, Circuit, Circuit))
    precompile(advance!, (JointEMJob{eltype(X),CPUEngine}, Float64))
end
precompile(emission_scores!, (Array{Float32,3}, Emissions{CPUEngine}, Array{UInt8,3}, Nothing, Nothing))
precompile(offset_em_job, (Array{UInt8,3}, Array{UInt16,3}, Int, Int, Float64, Float64, Float64, Float64, Int, Circuit, Emissions{CPUEngine}, Vector{Int32}))
precompile(advance!, (OffsetEMJob{UInt8,CPUEngine}, Float64))
precompile(shape_rows, (Emissions{CPUEngine}, Int, Matrix{UInt8}, Nothing))
precompile(table_flows!, (Vector{Matrix{Float32}}, OffsetEMJob{UInt8,CPUEngine}, ShapeRows{ChannelRows{Matrix{UInt8}}}, Int, Matrix{Float32}, Matrix{Float32}))
precompile(tied_lines_of, (Matrix{Int}, Vector{Float64}, Matrix{Float64}, Matrix{Float64}, Array{Float32,3}))
precompile(tied_tree_of, (Vector{Int}, Vector{Int}, Vector{Float64}, Array{Float32,3}))
precompile(apply!, (CPUEngine, Float64, Float64))
precompile(accumulate_posterior!, (Array{Float32,3}, CPUEngine, SoftEvidence, Vector{Int32}))
precompile(grow_circuit, (Circuit, Vector{Float64}, Float64, Vector{Int}, Float64, Float64, Int))
precompile(circuit_with_heads, (Circuit, Vector{Int32}))
precompile(advance!, (MutualInformationJob, Float64))
precompile(chow_liu_parents, (Matrix{Float64},))
precompile(leaves_of, (String, Vector{Int}, Vector{Float64}, Vector{Float64}))
precompile(tree_circuit, (Vector{Int}, Int, Int, Int, Float64, Int, Vector{Leaf}))
precompile(hclt_from_states, (Vector{Int}, Int, Int, Int, Float64, Int, Matrix{UInt8}, Matrix{Int32}, Vector{Int32}, Vector{Leaf}))
precompile(Plan, (Circuit,))
precompile(read_piece!, (JpcReader, Vector{UInt8}))
precompile(finish!, (JpcReader,))
precompile(JpcWriter, (String, Circuit, String))
precompile(advance!, (JpcWriter, Float64))
