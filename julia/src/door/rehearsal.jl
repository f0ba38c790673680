# What a process compiles when it first learns and asks: small circuits do both here, by the calls that Python makes, while Julia
# precompiles the package. Julia 1.9 and later keep the code; older ones would keep nothing of it.

"What went wrong in the rehearsal: a test wants nothing. The package is whole without it."
const REHEARSED = Ref{Any}(nothing)

function rehearse()
    WIDE[] = has_wide_registers()
    for T in (UInt8, Int32)
        rehearse_circuit(T, 4, 70)
    end
    rehearse_patches(4, 70)
    rehearse_windows()
end

"Some values below C, the same in every process."
some_values(::Type{T}, C::Int, sizes::Int...) where {T} = reshape(T[(7n * n + n ÷ 3) % C for n in 1:prod(sizes)], sizes)

to_end!(job) = (advance!(job, 1e9); job)

"A circuit with two heads learned from a table (V, N) of C categories, of which some may be missing, by each of the ways to start."
function rehearse_learning(X::Matrix, C::Int, mask=nothing)
    V, N = size(X)
    job = mutual_information_job(X, mask, C, 0.1, Matrix{UInt32}(undef, N, V))
    share_out!(job, 1, 1)
    parent = chow_liu_parents(mutual_information(to_end!(job)))
    leaves = leaves_of(join(fill("categorical", V), " "), fill(C, V), zeros(V), zeros(V))
    head_of = some_values(Int32, 2, N)
    check_hclt(V, 2, C, 2)
    tree = tree_circuit(parent, 2, C, 2, 0.4, 0, leaves)
    circuit = hclt_from_states(parent, 2, C, 2, 0.4, 0, X, mask, some_values(Int32, 2, V, N), head_of, leaves)
    for c in (tree, circuit)
        check_table(c, X, mask)
        for batch_size in (N, 32)
            to_end!(em_job(c, X, mask, head_of, ones(Float32, N), 1, batch_size, 0.3, 0.1, 0.1, true, 0, 0))
        end
    end
    return circuit
end

function rehearse_circuit(::Type{T}, C::Int, N::Int) where {T}
    V = 5
    X = some_values(T, C, V, N)
    c = rehearse_learning(X, C)
    circuit_fields(c), circuit_size(c), circuit_arrays(c)
    plan, head_of, mask, wide = plan_of(c, false), zeros(Int32, N), Array(some_values(UInt8, 2, V, N) .== 0), Matrix{Int32}(X)
    log_likelihoods!(zeros(2, N), plan, X, nothing, -1)
    log_likelihoods!(zeros(1, N), plan, wide, mask, 0)
    rehearse_answers(plan, nothing, nothing, zeros(Int32, 1), C)
    rehearse_answers(plan, wide, mask, head_of, C)
    to_end!(moments_job(plan, wide, mask, head_of, zeros(V, N), zeros(V, N)))
    job = to_end!(flow_job(plan, X, nothing, head_of, ones(Float32, N)))
    statistics(job), has_silent_edges(job, 1e-4)
    grow_circuit(prune_by_flow(job, 1e-4), first(unit_flows(job)), Float64(N), [0], 0.1, 0.2, 0)
    rehearse_codec(circuit_coder(with_heads(c, [1])), some_values(Int32, C, V, 3))
end

"Samples and marginals; without a table, samples alone."
function rehearse_answers(plan, X, mask, head_of, C)
    V, n = circuit(plan).num_vars, length(head_of)
    to_end!(sample_job(plan, X, mask, head_of, zeros(UInt8, V, 2, n), 0))
    X === nothing || to_end!(marginals_job(plan, X, mask, head_of, zeros(C, V, n)))
end

function rehearse_codec(coder, X::Matrix{Int32})
    V, n = size(X)
    _, widest, _ = coder_size(coder)
    job, tables = coding(coder, X, false), zeros(64 * widest * n)
    while next_tables!(tables, zeros(Int32, n, 64), zeros(Int32, 64), job) > 0
    end
    job = coding(coder, zeros(Int32, V, n), true)
    while next_table!(tables, job, zeros(Int32, n)) > 0
    end
end

"Models of windows."
function rehearse_windows()
    w, X = Windows(4, 4, 1, 2, zeros(Int32, 12, 1)), some_values(UInt8, 256, 16, 6)
    rows, outside = zeros(UInt8, num_values(w), 96), fill(false, num_values(w), 96)
    window_rows!(rows, outside, w, X, collect(Int64, 0:95))
    circuit = with_heads(rehearse_learning(rows, 256, outside), [1])
    log_likelihoods!(zeros(1, 96), plan_of(circuit, false), rows, outside, 0)
    coder = WindowCoder(circuit, w)
    rehearse_codec(coder, Matrix{Int32}(X))
    draw_pixels!(zeros(Int32, 16, 2), fill(true, 16, 2), coder, 0, 0)
end

"Models of patches, whose values of z are the heads of circuits, and of shapes under offsets."
function rehearse_patches(P::Int, N::Int)
    V, S, C = 4, 4, 256
    patches, hidden = some_values(UInt8, C, V, P, N), Array(some_values(UInt8, 2, V, P, N) .== 0)
    circuits = [rehearse_learning(patches[:, 1, :], C) for _ in 1:2]
    plans = [plan_of(c, false) for c in circuits]
    prior = with_heads(rehearse_learning(some_values(Int32, S, P, N), S), [1])
    scores = zeros(Float32, S, P, N)
    patch_scores!(scores, patches, hidden, true, plans...)
    patch_scores!(fill!(scores, 0), patches, nothing, true, plans...)
    rehearse_prior(prior, scores, S)
    job = joint_em_job(patches, nothing, 1, 32, 0.05, 0.01, 0.1, 0.1, 0, true, prior, circuits...)
    continue_from!(job, 0, 0, 0.0)
    to_end!(job)
    images = reshape(some_values(Int32, C, V * P, 2), V * P, 2)
    rehearse_codec(joint_coder(prior, true, circuits...), images)
    rehearse_offsets(patches, hidden, circuits, plans, S)
end

function rehearse_prior(prior::Circuit, scores::Array{Float32,3}, S::Int)
    evidence, plan, N = SoftEvidence(scores), plan_of(prior, true), size(scores, 3)
    log_likelihoods!(zeros(1, N), plan, evidence, 0, 0)
    rehearse_answers(plan, evidence, nothing, zeros(Int32, N), S)
    to_end!(em_job(prior, evidence, nothing, zeros(Int32, N), ones(Float32, N), 1, 32, 0.1, 0.1, 0.1, true, 0, 0))
end

function rehearse_offsets(patches::Array{UInt8,3}, hidden::Array{Bool,3}, circuits, plans, S::Int)
    V, P, N = size(patches)
    steps, shifts, J = [32], fill(1f0 / 8, S, 8), sum(num_heads, circuits)
    shares, transitions = fill(1 / S, S), fill(1f0 / S, S, S, 4)
    foreach(c -> limit_inputs!(c, fill(true, 256, V)), circuits)
    comb, ties = tied_tree_of([-1, 0, 0, 1], [0, 0, 1, 1], shares, transitions)
    prior = mixture_circuit([0.5, 0.5], comb, comb)
    em = emissions(steps, fill(1f0 / J, S, J), shifts, plans...)
    scores = zeros(Float32, S, P, N)
    emission_scores!(scores, patches, hidden, em)
    emission_scores!(scores, patches, nothing, em)
    rehearse_prior(prior, scores, S)
    some, weights = patches[:, 1, :], fill(1f0 / S, S, N)
    emission_shares!(zeros(Float32, J, N), some, hidden[:, 1, :], weights, em, zeros(Float32, J, 8, N))
    job = offset_em_job(patches, some_values(UInt16, 2, 2, P, N), 1, 32, 0.5, 0.05, 0.01, 0.1, 0, prior, em, nothing)
    continue_from!(job, 0, 0, 0.0)
    to_end!(job)
    rehearse_codec(offset_coder(prior, steps, em.join, shifts, circuits...), some_values(Int32, 256, V * P, 2))
end

if VERSION >= v"1.9" && ccall(:jl_generating_output, Cint, ()) == 1
    try
        rehearse()
    catch e
        REHEARSED[] = sprint(showerror, e)
    end
    WIDE[] = false
end
